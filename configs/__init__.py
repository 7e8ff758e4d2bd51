"""Config files: `default` has every setting, the others are short diffs of it."""
