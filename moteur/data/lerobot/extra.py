"""What the `data` extra brings, asked for before anything imports it, so that its absence is told in our words."""

from moteur.optional import require

for _name in ("pyarrow", "av", "PIL"):
    require(_name, extra="data")
