"""What the recorded runs mean: metrics, statistics, tables, pictures and the report."""
