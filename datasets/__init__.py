"""Offline datasets: readers, collectors, downloads and the device-resident buffer.

From a name to a batch
    names        dataset names, and the folders that files lie in
    load         a name or a file to canonical episodes; the place to start reading
    episodes     canonical episodes: flat columns and episode boundaries
    arrays       the same from arrays in memory
    action_bounds  bounds of a user's own actions, mapped to -1 and 1
    returns      n-step targets and returns-to-go
    buffer       all columns on the training device

Reading files
    columns      npz or HDF5 → npz, hdf5
    reading      what both have in common: bounds, hostile names, threads
    blocks       large arrays a block at a time
    required     columns of a type, a shape and a length, finite
    ogbench      the layout of a row more per episode, and the rewards of OGBench's tasks
    d4rl         the layout of one row per transition
    minari       Minari's folders → minari_hdf5, minari_arrow
    slices       folders of npz slices
    digests      SHA-256 in parallel with other work

Looking at data
    views        data as the checks see them
    checks       what is wrong with the data → findings, checks_of_ends, checks_of_steps,
                 checks_of_numbers
    check_dataset  all checks of a name or a file
    summary      what a dataset holds, in a few numbers
    convert      conversion between npz, HDF5 and Minari → hdf5_writing

Getting data
    catalogue    published datasets and their known faults
    mirrors      where to get them → download, availability, verify, minari_remote
    collect      OGBench's datasets collected anew → behaviours
    embedded     the demo's dataset
"""

if __name__ == "datasets":
    raise ImportError(
        "this folder is tql_offline.datasets; import it by that name "
        "(the bare name `datasets` belongs to Hugging Face's package)"
    )
