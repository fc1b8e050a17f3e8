"""The job queue on the disk: jobs and what becomes of them. Knows nothing of brokers and consoles."""
