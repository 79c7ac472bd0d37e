"""Offline datasets: readers, collectors, downloads and the device-resident buffer."""

if __name__ == "datasets":
    raise ImportError(
        "this folder is tql_offline.datasets; import it by that name "
        "(the bare name `datasets` belongs to Hugging Face's package)"
    )
