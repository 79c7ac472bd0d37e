"""The standard evaluator: rollouts, protocols, scores, statistics and reports."""

if __name__ == "eval":
    raise ImportError("this folder is tql_offline.eval; import it by that name")
