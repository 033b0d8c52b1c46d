"""The Django app: settings from DATABASES, a migration, system checks and an admin."""
