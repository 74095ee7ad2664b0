//! Decisions about who may do what, and who may join: rights, tokens, the authority, certificates that are void.

use std::sync::Arc;

use quire_protocol::group_name::control_character;
use quire_protocol::{BrokerId, INTERNAL_TOPIC_PREFIX, Timestamp, limits};

use super::Refusal;
use super::image::{Acl, Image, Operation};
use super::records::Record;

/// Decides that a right is given.
pub(super) fn add_acl(image: &Image, acl: Acl) -> Result<Vec<Record>, Refusal> {
    check_acl(&acl)?;
    if image.acls.contains(&acl) {
        return Ok(Vec::new());
    }
    if image.acls.len() >= limits::ACLS_MAX {
        return Err(Refusal::TooMany { what: "rights", max: limits::ACLS_MAX });
    }
    Ok(vec![Record::AclAdded(acl)])
}

fn check_acl(acl: &Acl) -> Result<(), Refusal> {
    let refuse = |why| Err(Refusal::InvalidAcl { why });
    if acl.principal.is_empty() || acl.principal.len() > limits::PRINCIPAL_BYTES_MAX {
        return refuse("a principal has 1 to 256 bytes");
    }
    match acl.operation {
        Operation::Administer if !acl.prefix.is_empty() => {
            refuse("an administrator is one of the whole cluster: leave the prefix away")
        }
        Operation::Join if acl.prefix.len() > limits::GROUP_ID_BYTES_MAX => {
            refuse("no group's name is as long as this prefix")
        }
        Operation::Join if control_character(&acl.prefix).is_some() => {
            refuse("no group's name has control characters, as this prefix does")
        }
        Operation::Join => Ok(()),
        _ if acl.prefix.len() > limits::TOPIC_NAME_BYTES_MAX => {
            refuse("no topic's name is as long as this prefix")
        }
        // It would have no effect.
        _ if acl.prefix.starts_with(INTERNAL_TOPIC_PREFIX) => {
            refuse("topics whose names begin with \"__\" are the brokers' own, for administrators alone")
        }
        _ => Ok(()),
    }
}

/// Decides that a right is taken away.
pub(super) fn remove_acl(image: &Image, acl: Acl) -> Result<Vec<Record>, Refusal> {
    if !image.acls.contains(&acl) {
        return Err(Refusal::UnknownAcl);
    }
    Ok(vec![Record::AclRemoved(acl)])
}

/// Decides that a token can be used; forgets those that can not any more.
pub(super) fn issue_token(
    image: &Image,
    now: Timestamp,
    hash: [u8; 32],
    expires_at: Timestamp,
) -> Result<Vec<Record>, Refusal> {
    let age_max = limits::TOKEN_AGE_MAX.as_millis() as i64;
    if expires_at <= now || expires_at.0 > now.0.saturating_add(age_max) {
        return Err(Refusal::TokenAge);
    }
    if image.tokens.contains_key(&hash) {
        return Ok(Vec::new());
    }
    let expired = image.tokens.iter().filter(|(_, token)| token.expires_at <= now);
    let mut records: Vec<_> = expired.map(|(hash, _)| Record::TokenRemoved { hash: *hash }).collect();
    if image.tokens.len() - records.len() >= limits::TOKENS_MAX {
        return Err(Refusal::TooMany { what: "tokens", max: limits::TOKENS_MAX });
    }
    records.push(Record::TokenIssued { hash, expires_at });
    Ok(records)
}

/// Decides that a token is used; also says which broker id is given for it.
pub(super) fn redeem_token(
    image: &Image,
    now: Timestamp,
    hash: [u8; 32],
    redeemer: [u8; 32],
) -> Result<(BrokerId, Vec<Record>), Refusal> {
    // One answer for everything, so that nobody learns which tokens there are.
    let token =
        image.tokens.get(&hash).filter(|token| now < token.expires_at).ok_or(Refusal::InvalidToken)?;
    match token.redeemed {
        Some((known, broker)) if known == redeemer => Ok((broker, Vec::new())),
        Some(_) => Err(Refusal::InvalidToken),
        None => {
            let broker = image.next_broker;
            Ok((broker, vec![Record::TokenRedeemed { hash, redeemer, broker }]))
        }
    }
}

/// Decides what the cluster's authority is.
pub(super) fn set_authority(image: &Image, sealed: Arc<[u8]>) -> Result<Vec<Record>, Refusal> {
    if sealed.is_empty() || sealed.len() > limits::AUTHORITY_BYTES_MAX {
        return Err(Refusal::AuthorityLength { given: sealed.len() });
    }
    if image.authority() == Some(&sealed) {
        return Ok(Vec::new());
    }
    Ok(vec![Record::AuthoritySet { sealed }])
}

/// Decides that a certificate is void.
pub(super) fn revoke_certificate(image: &Image, serial: Arc<[u8]>) -> Result<Vec<Record>, Refusal> {
    if serial.is_empty() || serial.len() > limits::CERTIFICATE_SERIAL_BYTES_MAX {
        return Err(Refusal::InvalidSerial);
    }
    if image.is_revoked(&serial) {
        return Ok(Vec::new());
    }
    if image.revoked.len() >= limits::REVOKED_CERTIFICATES_MAX {
        return Err(Refusal::TooMany { what: "revoked certificates", max: limits::REVOKED_CERTIFICATES_MAX });
    }
    Ok(vec![Record::CertificateRevoked { serial }])
}
