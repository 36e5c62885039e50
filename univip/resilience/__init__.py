"""What keeps a run alive: the guard's verdict, the ledger of decisions, planted faults for drills."""
