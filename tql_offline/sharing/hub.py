"""Publishing a model folder on the Hugging Face Hub."""

import re
from importlib.util import find_spec
from pathlib import Path

from tql_offline.errors import InputError, one_line, shown
from tql_offline.sharing.model import ModelFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")


def check_hub(repository: str) -> None:
    """Check, before anything is written, that a model could be published under a name.

    Raises:
        InputError: it is not of the form USER/NAME, or a package is missing.
    """
    forbidden = ".." in repository or "--" in repository or repository.endswith((".", ".git", "-"))
    if not _NAME.fullmatch(repository) or forbidden:
        raise InputError(
            f"--push-to-hub {shown(repository)} is no repository of the Hub; give USER/NAME of "
            "letters, digits, '-', '_' and '.'"
        )
    if find_spec("huggingface_hub") is None:
        raise InputError(
            "--push-to-hub needs huggingface_hub; install it with `pip install 'tql-offline[hub]'`"
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if it is missing, and upload a model folder in one commit.

    Args:
        folder: the model folder.
        repository: USER/NAME.
        private: whether a repository, if created, is visible to its owner only.

    Returns:
        The model's address.

    Raises:
        InputError: there is no network, no login, no permission, or the Hub refuses.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name="tql-offline")
    try:
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            commit_message="Model exported by tql-offline",
            # Otherwise an earlier model's would stay if this one has none.
            delete_patterns=[ModelFolder(folder).onnx.name],
        )
    # Its errors are those of whichever HTTP library its version uses.
    except Exception as error:
        raise InputError(
            f"{folder} is written but could not be pushed to {repository} ({one_line(error)}); see "
            f"that there is a network and a login (`hf auth login`), then run `hf upload "
            f"{repository} {folder} .`"
        ) from error
    return f"{api.endpoint}/{repository}"
