"""Programs for those who work on the project: pages made from code, pictures of tables, counts."""
