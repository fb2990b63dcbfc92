"""What happened in a run, made readable: the story, the chart of it, and exports."""
