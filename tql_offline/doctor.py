"""What this machine has, what it lacks, and the command that fixes each problem.

Only gathers facts; nothing here prints, raises or changes anything.
"""

import os
import platform
import shutil
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from tql_offline.cores import memory_limit, usable_cores
from tql_offline.datasets.names import collected_folder, downloaded_folder
from tql_offline.files import nearest_existing
from tql_offline.temporary import environment_files_removed
from tql_offline.version import __version__, installed_version

State = Literal["ok", "missing", "warning"]

EXTRAS = {
    "onnx": ("onnx", "policies in ONNX, which `export` writes"),
    "minari": ("minari", "datasets from Minari's hub"),
    "hub": ("huggingface_hub", "models on Hugging Face's hub"),
    "video": ("imageio-ffmpeg", "films as MP4"),
    "wandb": ("wandb", "live logging to Weights & Biases"),
    "tensorboard": ("tensorboard", "event files for TensorBoard"),
}
"""Extras of this package: a distribution that each brings, and its use."""

LINUX_RENDERERS = ("egl", "osmesa")
"""Values of MUJOCO_GL with which MuJoCo cannot be imported on other systems."""

_EXAMPLE = "cube-double-play-v0"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about this machine.

    Attributes:
        topic: what it is about, in a word or two.
        state: "ok", "missing", or "warning" (it is there but will cause trouble).
        detail: the fact, with versions, sizes or the reason.
        mend: the exact command that fixes it, or "".
    """

    topic: str
    state: State
    detail: str
    mend: str = ""


def diagnose() -> list[Finding]:
    """Look at everything a run needs; a check that fails becomes a finding itself."""
    checks = {
        "python": _python,
        "packages": _packages,
        "extras": _extras,
        "torch": _torch,
        "cuda": _cuda,
        "kernels in C": _c_kernels,
        "cores": _cores,
        "memory": _memory,
        "rendering": _rendering,
        "downloaded data": _downloaded,
        "collected data": _collected,
        "environment": _environment,
    }
    return [finding for topic, check in checks.items() for finding in _guarded(topic, check)]


def _guarded(topic: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        # Simulators and drivers warn at import; their output would garble the table.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except Exception as error:
        detail = f"could not be looked at ({_reason(error)})"
        return [Finding(topic=topic, state="warning", detail=detail)]


def _reason(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _python() -> list[Finding]:
    detail = f"{platform.python_version()} on {platform.platform()}, tql-offline {__version__}"
    return [Finding(topic="python", state="ok", detail=detail)]


def _packages() -> list[Finding]:
    return [_package(requirement) for requirement in _requirements()]


def _requirements() -> list[Requirement]:
    """What this package requires here, from its installed metadata or its checkout."""
    try:
        lines = metadata.requires("tql-offline") or []
    except metadata.PackageNotFoundError:
        lines = _project_dependencies()
    wanted = (Requirement(line) for line in lines)
    return [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


def _project_dependencies() -> list[str]:
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    lines: list[str] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return lines


def _package(requirement: Requirement) -> Finding:
    """Whether a requirement is met (mujoco's excludes 3.9.0, as OGBench's does)."""
    name, wanted = requirement.name, requirement.specifier
    mend = f"pip install '{requirement}'"
    version = installed_version(name)
    if version is None:
        return Finding(topic=name, state="missing", detail="not installed", mend=mend)
    if not wanted.contains(version, prereleases=True):
        detail = f"{version} is installed, {wanted} is needed"
        return Finding(topic=name, state="warning", detail=detail, mend=mend)
    return Finding(topic=name, state="ok", detail=version)


def _extras() -> list[Finding]:
    return [_extra(name, *extra) for name, extra in EXTRAS.items()]


def _extra(name: str, distribution: str, purpose: str) -> Finding:
    version = installed_version(distribution)
    topic = f"{name} (optional)"
    if version is not None:
        return Finding(topic=topic, state="ok", detail=version)
    return Finding(
        topic=topic,
        state="missing",
        detail=f"not installed; only for {purpose}",
        mend=f"pip install 'tql-offline[{name}]'",
    )


def _torch() -> list[Finding]:
    import torch

    detail = f"{_build(torch.version.cuda)}, {torch.get_num_threads()} threads"
    return [Finding(topic="torch build", state="ok", detail=detail)]


def _build(cuda: str | None) -> str:
    return "built for the CPU alone" if cuda is None else f"built for CUDA {cuda}"


def _cuda() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        return [_device(index) for index in range(torch.cuda.device_count())]
    if shutil.which("nvidia-smi") is None:
        return [Finding(topic="cuda", state="ok", detail="no GPU here; runs use the CPU")]
    if torch.version.cuda is None:
        detail = "there is an NVIDIA driver, but torch is built for the CPU alone"
        mend = "pip install --force-reinstall torch --index-url https://pypi.org/simple"
        return [Finding(topic="cuda", state="warning", detail=detail, mend=mend)]
    detail = (
        f"there is an NVIDIA driver, but torch, built for CUDA {torch.version.cuda}, "
        "finds no GPU that it can use"
    )
    return [Finding(topic="cuda", state="warning", detail=detail, mend="nvidia-smi")]


def _device(index: int) -> Finding:
    import torch

    device = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    detail = (
        f"{device.name}, {_gb(total)}, {_gb(free)} free, "
        f"compute capability {device.major}.{device.minor}"
    )
    return Finding(topic=f"cuda:{index}", state="ok", detail=detail)


def _c_kernels() -> list[Finding]:
    import torch

    from tql_offline.networks import cpu_kernels

    topic = "kernels in C"
    if not (lack := cpu_kernels.why_not()):
        return [Finding(topic=topic, state="ok", detail="compiled; updates on a CPU use them")]
    detail = f"none ({lack}); updates on a CPU take a fifth longer"
    if torch.cuda.is_available() or not cpu_kernels.can_exist():
        return [Finding(topic=topic, state="ok", detail=detail)]
    return [Finding(topic=topic, state="warning", detail=detail, mend=_kernels_mend())]


def _kernels_mend() -> str:
    """The command that fixes a lack of kernels in C; "" if what the compiler said has to tell."""
    from tql_offline import native

    is_own = bool(os.environ.get("CC"))
    if not native.has_compiler():
        apt = "apt-get install gcc" if platform.system() == "Linux" else ""
        return "unset CC" if is_own else apt
    if not native.can_keep():
        return "export HOME=/path/to/a/writable/folder"
    return "unset CC" if is_own else ""


def _cores() -> list[Finding]:
    total = os.cpu_count() or 1
    return [Finding(topic="cores", state="ok", detail=f"{usable_cores()} usable of {total}")]


def _memory() -> list[Finding]:
    if not hasattr(os, "sysconf"):
        return [Finding(topic="memory", state="ok", detail="unknown")]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    if limit is None or limit >= total:
        return [Finding(topic="memory", state="ok", detail=_gb(total))]
    detail = f"{_gb(limit)}, the limit of this container or job, of {_gb(total)}"
    return [Finding(topic="memory", state="ok", detail=detail)]


def _rendering() -> list[Finding]:
    topic, chosen, on_linux = "rendering", os.environ.get("MUJOCO_GL"), platform.system() == "Linux"
    if chosen in LINUX_RENDERERS and not on_linux:
        detail = f"MUJOCO_GL is {chosen}, which is for Linux; MuJoCo cannot be imported with it"
        return [Finding(topic=topic, state="warning", detail=detail, mend="unset MUJOCO_GL")]
    detail = f"MUJOCO_GL is {chosen or 'not set'}; only images and videos need it"
    advice = "; `export MUJOCO_GL=egl` draws without a display" if on_linux else ""
    return [Finding(topic=topic, state="ok", detail=f"{detail}{advice}")]


def _downloaded() -> list[Finding]:
    return [_folder("downloaded data", downloaded_folder(), "OGBENCH_DATA", "download")]


def _collected() -> list[Finding]:
    return [_folder("collected data", collected_folder(), "TQL_OFFLINE_DATA", "collect")]


def _folder(topic: str, folder: Path, variable: str, command: str) -> Finding:
    """The datasets in a folder, and whether more can be put there."""
    place = nearest_existing(folder)
    datasets, unfinished = _datasets(folder), _unfinished(folder)
    detail = f"{', '.join(datasets) or 'no dataset'} in {folder}"
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        detail = f"{detail}, which cannot be written to"
        mend = f"export {variable}=$HOME/{variable.lower()}"
        return Finding(topic=topic, state="warning", detail=detail, mend=mend)
    detail = f"{detail}, {_gb(shutil.disk_usage(place).free)} free"
    if unfinished:
        detail = f"{detail}; unfinished: {', '.join(unfinished)}"
        mend = f"tql-offline {command} {' '.join(unfinished)}"
        return Finding(topic=topic, state="warning", detail=detail, mend=mend)
    if not datasets:
        mend = f"tql-offline {command} {_EXAMPLE}"
        return Finding(topic=topic, state="missing", detail=detail, mend=mend)
    return Finding(topic=topic, state="ok", detail=detail)


def _datasets(folder: Path) -> list[str]:
    """Each dataset with the size of its files."""
    files = sorted(folder.glob("[!.]*.npz"))  # macOS puts `._x.npz` beside a copied `x.npz`
    trained = (file for file in files if not file.stem.endswith("-val"))
    return [f"{file.stem} ({_gb(_size(file))})" for file in trained]


def _unfinished(folder: Path) -> list[str]:
    """Datasets whose download was interrupted."""
    parts = (part.name.removesuffix(".npz.part") for part in folder.glob("*.npz.part"))
    return sorted({part.removesuffix("-val") for part in parts})


def _size(file: Path) -> int:
    """Bytes of a training file and the validation file beside it, if there is one."""
    validation = file.with_name(f"{file.stem}-val.npz")
    return file.stat().st_size + (validation.stat().st_size if validation.is_file() else 0)


def _environment() -> list[Finding]:
    """Make one small environment of OGBench and reset it."""
    topic = "environment"
    try:
        import ogbench

        with environment_files_removed():
            env = ogbench.make_env_and_datasets("pointmaze-medium-navigate-v0", env_only=True)
        observation, _ = env.reset(seed=0)
        env.close()
    # Whatever the cause, the fix is to reinstall the two packages.
    except Exception as error:
        detail = f"OGBench cannot make pointmaze-medium ({_reason(error)})"
        mend = "pip install --force-reinstall --no-deps ogbench 'mujoco!=3.9.0'"
        return [Finding(topic=topic, state="warning", detail=detail, mend=mend)]
    detail = f"OGBench makes pointmaze-medium, {len(observation)} numbers per observation"
    return [Finding(topic=topic, state="ok", detail=detail)]


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
