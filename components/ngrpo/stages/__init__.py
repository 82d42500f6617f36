"""The stages of the pipeline: ordinary functions over files, and what it takes to run one."""
