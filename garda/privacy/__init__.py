"""What a generator gives away of the patients it has learnt from: copies, membership, bytes kept."""

from garda.privacy.audit import audit
from garda.privacy.figures import Audit, AuditSettings, Copies, Membership, Outliers

__all__ = ["Audit", "AuditSettings", "Copies", "Membership", "Outliers", "audit"]
