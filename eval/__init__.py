"""The standard evaluator: rollouts, protocols, scores, statistics and reports.

Playing episodes
    protocol     what makes two scores comparable; the place to start reading
    environments made and seeded → recover (for Minari's datasets), unit_actions, bounds
    rollout      episodes of a policy, and the record of an evaluation
    workers      environments in processes → stepping, worker_start
    noise        an episode's noise for its policy
    scores       from episodes to a score → references

Comparing runs
    run_records  tolerant reading of run folders → record_files, evaluation_records,
                 curve_records, contradictions
    measured     a run's scores, and what must be equal for two runs to be compared
    leaderboard  scores of methods by task → rows, variants, published, imported
    ended        runs without a score, which comparisons must not forget
    averages     over tasks, and ranks of methods
    statistics   intervals and spreads
    trends       whether scores rise with size, as a test → scaling: with every method's numbers
    differences  whether methods of equal size differ
    claim        the measured change with size compared with the printed one
    selection    choosing among policies by online episodes

Reports
    report       one HTML page, one Markdown file, the leaderboard's files
    run_page, report_scores, report_tables, report_plots                        of runs
    leaderboard_page, leaderboard_notes, scaling_page, differences_page,
        learning_curves, line_styles, leaderboard_files                         of boards
    plots        inline SVG

Looking into runs
    inspections  what `inspect` wrote → inspect_plots, attention_health
    video        replayed episodes → drawing, encoders
"""

if __name__ == "eval":
    raise ImportError("this folder is tql_offline.eval; import it by that name")
