"""A run on a cluster: client, compilation, pods, images, submission."""
