"""YAML only; a package so that an installed copy finds its files."""
