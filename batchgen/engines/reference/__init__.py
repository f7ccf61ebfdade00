"""Engine `reference`: transformers' own `generate`, the reference that other engines are compared with."""
