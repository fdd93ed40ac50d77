"""LeRobot sets: reading format v3.0 and v2.1, and writing v3.0. The names are exported by `moteur.data`."""
