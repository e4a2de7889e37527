"""The published data sets and training runs that tables.py makes again."""
