"""Stage `reference`: relevance grades and minimal sufficient span sets, from gold annotation alone."""
