"""What several backends share: fronts, SQL verbs, batches of calls, URLs. Nothing here imports a backend."""
