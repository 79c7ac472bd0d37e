"""Offline datasets: readers, collectors, downloads and the device-resident buffer.

From a name to a batch
    names        dataset names, and the folders that files lie in
    load         a name or a file to canonical episodes; the place to begin reading
    episodes     these: flat columns and episode boundaries
    arrays       the same from arrays in memory
    returns      n-step targets and returns-to-go
    buffer       all columns on the training device

Reading files
    columns      npz or HDF5, whichever it is → npz, hdf5
    reading      what both have in common: bounds, hostile names, threads
    blocks       large arrays a block at a time
    required     columns of a type, a shape and a length, finite
    d4rl         the layout of one row per transition
    minari       Minari's folders → minari_hdf5, minari_arrow
    slices       folders of npz slices
    digests      SHA-256 beside other work

Looking at data
    views        data as the checks see them
    checks       what is wrong with them
    check_dataset  all of that for a name or a file
    summary      what a dataset holds, in a few numbers
    convert      npz, HDF5 and Minari there and back

Getting data
    catalogue    what is published, and its known faults
    mirrors      where from → download, availability, verify, minari_remote
    collect      OGBench's datasets made again → behaviours
    embedded     the demo's dataset
"""

if __name__ == "datasets":
    raise ImportError(
        "this folder is tql_offline.datasets; import it by that name "
        "(the bare name `datasets` belongs to Hugging Face's package)"
    )
