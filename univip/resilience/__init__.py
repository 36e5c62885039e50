"""What keeps a run alive: pre-flight, the guard's verdict, the ledger of decisions, planted faults."""
