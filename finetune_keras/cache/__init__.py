"""Never compute a frozen layer twice."""
