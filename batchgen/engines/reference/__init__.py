"""Engine `reference`: transformers' own `generate`, the oracle that other engines are held to."""
