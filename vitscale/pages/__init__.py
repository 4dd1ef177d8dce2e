"""Pages for a browser: how a document is built, how all of them look, and sheets of texts, tables and charts"""
