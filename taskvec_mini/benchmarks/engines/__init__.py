"""Where finetuning runs: here, or on a Ray cluster."""
