"""Training: from loaded data and settings to a finished run folder, and what is done with one.

A run
    run          set up, trained and written; the place to begin reading
    new_run      where it goes, and what is refused before it begins
    setup        all that trains, in memory → notes: what is said of it
    resume       a stopped run goes on, a finished one for more updates
    data, rewards, environment      what it trains on and is scored in
    own_settings                    which settings of one's own a method reads
    loop         updates, and at their steps log, score and save
    compile      how updates run: torch.compile, CUDA graphs, precision → device, memory
    stopping     Ctrl-C, SIGTERM and other signals that end a job
    reporters    where progress goes
    suite        a grid of runs → sweep: trains them; sweep_cost: what it will cost

What it writes
    metrics, trackers               numbers at log steps
    watch        warnings: exploding Q, collapsed attention
    checkpoint   one folder per step
    evaluation   scores of its policies
    provenance, arithmetic          what a number depends on, and what it cost
    result       result.json

Of a run that is there
    rescoring    scores from any checkpoint
    fqe          a policy's worth from data alone
    inspection   attention and Q
"""
