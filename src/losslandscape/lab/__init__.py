"""The paper's experiments: data, networks, training recipes, studies and their records."""
