"""What every page stands in: navigation, session, plan, charts, escaping."""
