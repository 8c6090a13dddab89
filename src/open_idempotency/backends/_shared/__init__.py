"""What several stores share: fronts, SQL verbs, batches of calls, URLs. Nothing here imports a store."""
