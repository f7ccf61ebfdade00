"""Show and prove what padding and masks do: the inspector, deliberate mistakes, verify, the HTML pages."""
