"""Object storage: artifacts with verified manifests, and an S3 service for one machine."""
