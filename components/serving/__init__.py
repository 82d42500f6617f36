"""The service of a registered version on a cluster: what KServe is told of it, and how it is applied, followed and put back."""
