"""Object storage: artifacts with verified manifests, checkpoints, a lock, and an embedded S3 server for one machine."""
