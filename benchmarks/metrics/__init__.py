"""What it costs to tell of a run: the orchestrator's benchmark without and with metrics and a page, in turns."""
