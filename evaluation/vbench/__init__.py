"""VBench-Long, the field's measure: videos laid out for it, and its results as the paper's table."""
