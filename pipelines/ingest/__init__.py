"""Files of any known format -> records with the lines they came from."""
