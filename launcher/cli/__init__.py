"""One file per verb, imported when the verb is used."""
