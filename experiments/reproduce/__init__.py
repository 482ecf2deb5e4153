"""Studies, one module each. A study writes a folder with metrics.json, its table and its plot."""
