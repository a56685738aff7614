"""Pages for people: HTML files that need nothing else, made from templates that escape every value."""
