import errno
import os
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import ogbench
import pytest
import torch

from tql_offline import doctor, native
from tql_offline.datasets.names import collected_folder, downloaded_folder
from tql_offline.doctor import EXTRAS, Finding, diagnose
from tql_offline.networks import cpu_kernels

ROOT = Path(__file__).parent.parent


def finding(topic):
    (found,) = (f for f in diagnose() if f.topic == topic)
    return found


@pytest.fixture
def versions(monkeypatch):
    """Say what is installed; None hides a package, others keep their version."""

    def install(**changed):
        real = metadata.version

        def version(name):
            if name not in changed:
                return real(name)
            if changed[name] is None:
                raise metadata.PackageNotFoundError(name)
            return changed[name]

        monkeypatch.setattr(metadata, "version", version)

    return install


@pytest.fixture
def as_checkout(monkeypatch):
    """The package is not installed: its needs are read from its pyproject.toml."""

    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)


def test_every_topic_is_reported_once():
    topics = [f.topic for f in diagnose()]
    assert len(topics) == len(set(topics))
    assert {"python", "torch", "mujoco", "cores", "memory", "rendering", "environment"} <= set(
        topics
    )


def test_the_needs_of_a_checkout_are_those_of_its_pyproject(as_checkout):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [str(r) for r in doctor._requirements()] == [
        str(doctor.Requirement(line)) for line in project["dependencies"]
    ]


def test_the_needs_of_an_installed_copy_leave_extras_out(monkeypatch):
    lines = ["h5py>=3.10", "wandb>=0.18; extra == 'wandb'", "torch>=2.6; python_version > '3'"]
    monkeypatch.setattr(metadata, "requires", lambda _name: lines)
    assert [r.name for r in doctor._requirements()] == ["h5py", "torch"]


def test_a_missing_package_comes_with_its_install_command(as_checkout, versions):
    versions(h5py=None)
    assert finding("h5py") == Finding(
        topic="h5py",
        state="missing",
        detail="not installed",
        mend="pip install 'h5py>=3.16'",
    )


def test_the_mujoco_that_ogbench_excludes_is_a_warning(as_checkout, versions):
    versions(mujoco="3.9.0")
    found = finding("mujoco")
    assert found.state == "warning"
    assert found.detail.startswith("3.9.0 is installed")
    assert "!=3.9.0" in found.mend
    versions(mujoco="3.9.1")
    assert finding("mujoco").state == "ok"


@pytest.mark.parametrize(("extra", "brought"), [(e, b) for e, (b, _) in EXTRAS.items()])
def test_a_missing_extra_names_its_exact_install(versions, extra, brought):
    versions(**{brought: None})
    found = finding(f"{extra} (optional)")
    assert found.state == "missing"
    assert found.mend == f"pip install 'tql-offline[{extra}]'"


def test_an_installed_extra_shows_its_version(versions):
    versions(wandb="0.99")
    found = finding("wandb (optional)")
    assert (found.state, found.detail) == ("ok", "0.99")


def test_datasets_are_listed_with_the_size_of_both_files():
    folder = downloaded_folder()
    folder.mkdir(parents=True)
    (folder / "scene-play-v0.npz").write_bytes(bytes(20_000_000))
    (folder / "scene-play-v0-val.npz").write_bytes(bytes(10_000_000))
    (folder / "._scene-play-v0.npz").write_bytes(b"by macOS")
    found = finding("downloaded data")
    assert found.state == "ok"
    assert found.detail.startswith(f"scene-play-v0 (0.03 GB) in {folder}, ")
    assert found.detail.endswith(" GB free")


def test_an_empty_place_says_how_to_fill_it():
    for topic, command in (("downloaded data", "download"), ("collected data", "collect")):
        found = finding(topic)
        assert found.state == "missing"
        assert found.mend == f"tql-offline {command} cube-double-play-v0"
    assert not collected_folder().exists()  # looking changes nothing
    assert not downloaded_folder().exists()


def test_an_unfinished_download_says_how_to_continue():
    folder = downloaded_folder()
    folder.mkdir(parents=True)
    (folder / "scene-play-v0.npz").write_bytes(b"")
    (folder / "scene-play-v0-val.npz.part").write_bytes(b"")
    found = finding("downloaded data")
    assert found.state == "warning"
    assert found.mend == "tql-offline download scene-play-v0"


def test_a_folder_that_cannot_be_written_to_says_how_to_name_another(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    found = finding("collected data")
    assert found.state == "warning"
    assert found.mend == "export TQL_OFFLINE_DATA=$HOME/tql_offline_data"


def test_a_file_in_place_of_the_folder_is_a_warning():
    downloaded_folder().write_text("not a folder")
    downloaded_folder().chmod(0o755)
    assert finding("downloaded data").state == "warning"


def test_the_environment_is_really_made(monkeypatch):
    assert finding("environment").detail.endswith("2 numbers per observation")

    def broken(*_, **__):
        raise OSError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(ogbench, "make_env_and_datasets", broken)
    found = finding("environment")
    assert found.state == "warning"
    assert "libEGL.so.1" in found.detail
    assert found.mend.startswith("pip install")


def test_each_gpu_is_named_with_its_memory(monkeypatch):
    properties = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _index: (60 * 10**9, 80 * 10**9))
    assert finding("cuda:1").detail == "H100, 80.00 GB, 60.00 GB free, compute capability 9.0"


@pytest.mark.parametrize(
    ("driver", "build", "state", "mend"),
    [
        (None, None, "ok", ""),
        ("/usr/bin/nvidia-smi", None, "warning", "pip install --force-reinstall torch"),
        ("/usr/bin/nvidia-smi", "12.8", "warning", "nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch, driver, build, state, mend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: driver)
    found = finding("cuda")
    assert found.state == state
    assert found.mend.startswith(mend)


def test_memory_is_that_of_the_container(monkeypatch):
    monkeypatch.setattr(doctor, "memory_limit", lambda: 10**9)
    assert finding("memory").detail.startswith("1.00 GB, the limit of this container or job")
    monkeypatch.setattr(doctor, "memory_limit", lambda: None)
    assert "limit" not in finding("memory").detail


def test_memory_is_unknown_where_the_system_does_not_tell_it(monkeypatch):
    monkeypatch.delattr(doctor.os, "sysconf")
    found = finding("memory")
    assert (found.state, found.detail) == ("ok", "unknown")


def test_the_rendering_backend_is_only_information(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    found = finding("rendering")
    assert found.state == "ok"
    assert found.detail.startswith("MUJOCO_GL is osmesa")


def test_renderers_of_linux_are_advised_on_linux_alone(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL")
    for system, is_advised in (("Linux", True), ("Darwin", False)):
        monkeypatch.setattr(doctor.platform, "system", lambda system=system: system)
        assert ("export MUJOCO_GL=egl" in finding("rendering").detail) == is_advised
    monkeypatch.setenv("MUJOCO_GL", "egl")
    found = finding("rendering")
    assert (found.state, found.mend) == ("warning", "unset MUJOCO_GL")


def test_nothing_raises_when_every_check_fails(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the disk\nis gone")

    for owner, name in (
        (doctor.metadata, "version"),
        (doctor.metadata, "requires"),
        (doctor.shutil, "disk_usage"),
        (doctor.shutil, "which"),
        (doctor.os, "sysconf"),
        (doctor.os, "cpu_count"),
        (doctor.platform, "platform"),
        (torch, "get_num_threads"),
        (torch.cuda, "is_available"),
        (cpu_kernels, "why_not"),
        (ogbench, "make_env_and_datasets"),
    ):
        monkeypatch.setattr(owner, name, fail)
    findings = diagnose()
    assert {f.state for f in findings if f.topic != "rendering"} == {"warning"}
    assert all("the disk" in f.detail for f in findings if f.topic != "rendering")
    assert all("\n" not in f.detail for f in findings)


@pytest.mark.skipif(not cpu_kernels.has_vectors(), reason="no AVX2")
def test_a_lack_of_kernels_in_c_names_the_reason_and_the_mend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "there is no C compiler (gcc)")
    found = finding("kernels in C")
    assert (found.state, found.mend) == ("warning", "apt-get install gcc")
    assert "no C compiler (gcc)" in found.detail
    monkeypatch.setenv("CC", "no-such-cc")
    assert finding("kernels in C").mend == "unset CC"
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "")
    assert finding("kernels in C").state == "ok"


@pytest.mark.skipif(not cpu_kernels.has_vectors(), reason="no AVX2")
def test_a_compiler_is_not_advised_by_the_command_of_another_system(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "there is no C compiler (gcc)")
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert finding("kernels in C").mend == ""
    monkeypatch.setattr(doctor.platform, "system", lambda: "Windows")
    assert finding("kernels in C").state == "ok"  # there is nothing to mend


def kernels_at(monkeypatch, home):
    """What is found of the kernels in C with this home folder and without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("HOME", str(home))
    native.library.cache_clear()
    try:
        return finding("kernels in C")
    finally:
        native.library.cache_clear()


@pytest.mark.skipif(bool(cpu_kernels.why_not()), reason=cpu_kernels.why_not())
def test_a_home_that_cannot_be_written_is_named_and_not_the_compiler(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.write_text("a file, not a folder")
    found = kernels_at(monkeypatch, home)
    assert (found.state, found.mend) == ("warning", "export HOME=/path/to/a/writable/folder")
    assert f"({home}/.tql-offline/compiled cannot be written (Not a directory))" in found.detail


@pytest.mark.skipif(bool(cpu_kernels.why_not()), reason=cpu_kernels.why_not())
def test_a_home_that_cannot_be_searched_is_named(monkeypatch, tmp_path):
    """What such a folder answers is raised here, since root may search every one."""
    home, exists = tmp_path / "home", Path.exists

    def refusing(path):
        if path.is_relative_to(home):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refusing)
    found = kernels_at(monkeypatch, home)
    assert (found.state, found.mend) == ("warning", "export HOME=/path/to/a/writable/folder")
    assert "cannot be written (Permission denied)" in found.detail


@pytest.mark.skipif(bool(cpu_kernels.why_not()), reason=cpu_kernels.why_not())
def test_a_compiler_that_fails_is_not_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "gcc failed: no space")
    monkeypatch.delenv("CC", raising=False)
    assert finding("kernels in C").mend == ""
    for own in ("gcc -O1", "gcc 'unclosed"):
        monkeypatch.setenv("CC", own)
        assert finding("kernels in C").mend == "unset CC"
