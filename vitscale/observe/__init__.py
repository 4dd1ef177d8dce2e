"""What a run tells: metric names, meters, metrics.jsonl, the Prometheus exporter and the console.  Nothing is imported here."""
