"""Workers of an annotation pool: ``protocol`` says what the pool asks of a worker; each other file is one kind."""
