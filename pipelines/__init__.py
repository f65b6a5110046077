"""Data in, model out: ingest, validate, fine-tune, track, evaluate, promote."""
