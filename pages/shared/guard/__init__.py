"""The guard of the served app: who may act, under which names it answers, and how much one question may cost."""
