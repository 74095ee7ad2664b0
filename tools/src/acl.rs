//! `quire acl`: who may do what.

use clap::{Args, Subcommand, ValueEnum};
use quire_client::{Acl, AclOperation, Client};
use serde::Serialize;

use crate::args::JsonArg;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Palette, Table, quoted};

/// What to do with rights.
#[derive(Debug, Subcommand)]
pub enum AclCommand {
    /// Give a right
    Add(RightArgs),
    /// List all rights
    List(JsonArg),
    /// Take a right away
    Remove(RightArgs),
}

/// A right.
#[derive(Debug, Args)]
pub struct RightArgs {
    /// A certificate's name, or '*' for everybody who is authenticated
    principal: String,
    /// What it may do
    operation: RightOperation,
    /// With topics whose names begin with this [default: all topics]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prefix: Option<String>,
    /// With groups whose names begin with this, where the right is to join them [default: all groups]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    group: Option<String>,
    #[command(flatten)]
    output: JsonArg,
}

/// What a right allows.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RightOperation {
    /// Append records
    Produce,
    /// Read records
    Consume,
    /// Join groups, commit their offsets, look at them, reset and delete them; what they consume takes 'consume' as well
    Join,
    /// Create, alter and delete topics
    Manage,
    /// Everything, also with the cluster itself
    Administer,
}

impl RightArgs {
    fn acl(&self) -> Result<Acl, Failure> {
        let operation = match self.operation {
            RightOperation::Produce => AclOperation::Produce,
            RightOperation::Consume => AclOperation::Consume,
            RightOperation::Join => AclOperation::Join,
            RightOperation::Manage => AclOperation::Manage,
            RightOperation::Administer => AclOperation::Administer,
        };
        let (prefix, other) = match operation {
            AclOperation::Join => (&self.group, &self.prefix),
            _ => (&self.prefix, &self.group),
        };
        match other {
            Some(other) => Err(self.misnamed(operation, other)),
            None => Ok(Acl {
                principal: self.principal.clone(),
                operation,
                prefix: prefix.clone().unwrap_or_default(),
            }),
        }
    }

    /// A prefix of groups with a right on topics, or the other way round.
    fn misnamed(&self, operation: AclOperation, prefix: &str) -> Failure {
        let (given, right) = (quoted(prefix), name(operation));
        match operation {
            AclOperation::Join => {
                Failure::usage("'join' is a right to groups, and --prefix is of topics' names")
                    .hint(format!("name the groups: --group {given}"))
            }
            AclOperation::Administer => {
                Failure::usage("'administer' is a right to everything, and --group is of groups' names")
                    .hint("leave --group away, or give the right to 'join'")
            }
            _ => Failure::usage(format!("'{right}' is a right to topics, and --group is of groups' names"))
                .hint(format!("name the topics: --prefix {given}   or give the right to 'join'")),
        }
    }
}

/// Does it.
///
/// # Errors
/// If the prefix is not of what the right is on, the broker can not be reached or refuses, or the answer can not be written.
pub async fn run(profile: Option<&str>, command: &AclCommand) -> Result<Exit, Failure> {
    let done = match command {
        AclCommand::Add(args) => {
            let acl = args.acl()?;
            let work = async |client: &Client| add(client, &acl, args.output.json).await;
            connect::with_client(profile, work).await
        }
        AclCommand::List(args) => {
            connect::with_client(profile, async |client: &Client| list(client, args.json).await).await
        }
        AclCommand::Remove(args) => {
            let acl = args.acl()?;
            let work = async |client: &Client| remove(client, &acl, args.output.json).await;
            connect::with_client(profile, work).await
        }
    };
    done.map(|()| Exit::Done)
}

async fn add(client: &Client, acl: &Acl, json: bool) -> Result<(), Failure> {
    client.admin().add_acl(acl.clone()).await?;
    if json {
        return output::print_json(&AclJson::from(acl));
    }
    output::print(&format!("{} may {}\n", acl.principal, sentence(acl)))
}

async fn remove(client: &Client, acl: &Acl, json: bool) -> Result<(), Failure> {
    client.admin().remove_acl(acl.clone()).await?;
    if json {
        return output::print_json(&AclJson::from(acl));
    }
    output::print(&format!("taken away: {} may {}\n", acl.principal, sentence(acl)))?;
    output::note(match acl.operation {
        AclOperation::Join => "members are refused at their next heartbeat, unless another right allows it",
        _ => "streams that are open go on; the next one is refused, unless another right allows it",
    });
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let acls = client.admin().list_acls().await?;
    if json {
        return acls.iter().try_for_each(|acl| output::print_json(&AclJson::from(acl)));
    }
    if acls.is_empty() {
        output::note(
            "no rights given: only the administrator's profile may do anything   next: quire acl add",
        );
        return Ok(());
    }
    let mut table = Table::new(&[("PRINCIPAL", Align::Left), ("MAY", Align::Left), ("WITH", Align::Left)]);
    for acl in &acls {
        table.row(vec![acl.principal.clone(), name(acl.operation).to_owned(), with(acl)]);
    }
    output::print(&table.render(Palette::stdout()))
}

fn name(operation: AclOperation) -> &'static str {
    match operation {
        AclOperation::Produce => "produce",
        AclOperation::Consume => "consume",
        AclOperation::Join => "join",
        AclOperation::Manage => "manage",
        AclOperation::Administer => "administer",
    }
}

/// What the right is on, in a table.
fn with(acl: &Acl) -> String {
    match (acl.operation, acl.prefix.as_str()) {
        (AclOperation::Administer, _) => "everything".to_owned(),
        (operation, "") => format!("all {}", named(operation)),
        (operation, prefix) => format!("{} {prefix}*", named(operation)),
    }
}

/// What the names are of that a right's prefix is of.
fn named(operation: AclOperation) -> &'static str {
    if operation == AclOperation::Join { "groups" } else { "topics" }
}

fn sentence(acl: &Acl) -> String {
    let names = match acl.prefix.as_str() {
        "" => format!("all {}", named(acl.operation)),
        prefix => format!("{} that begin with \"{prefix}\"", named(acl.operation)),
    };
    match acl.operation {
        AclOperation::Produce => format!("produce to {names}"),
        AclOperation::Consume => format!("consume {names}"),
        AclOperation::Join => format!("join {names}"),
        AclOperation::Manage => format!("create, alter and delete {names}"),
        AclOperation::Administer => "do everything".to_owned(),
    }
}

#[derive(Serialize)]
struct AclJson<'a> {
    principal: &'a str,
    operation: &'static str,
    /// Null of a right to join.
    topic_prefix: Option<&'a str>,
    /// Null of any other.
    group_prefix: Option<&'a str>,
}

impl<'a> From<&'a Acl> for AclJson<'a> {
    fn from(acl: &'a Acl) -> AclJson<'a> {
        let of = |is_of: bool| is_of.then_some(acl.prefix.as_str());
        let is_join = acl.operation == AclOperation::Join;
        AclJson {
            principal: &acl.principal,
            operation: name(acl.operation),
            topic_prefix: of(!is_join),
            group_prefix: of(is_join),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_reads_as_a_sentence() {
        let right = |operation, prefix: &str| {
            sentence(&Acl { principal: "billing".into(), operation, prefix: prefix.into() })
        };
        assert_eq!(right(AclOperation::Produce, "bill."), "produce to topics that begin with \"bill.\"");
        assert_eq!(right(AclOperation::Consume, ""), "consume all topics");
        assert_eq!(right(AclOperation::Join, "bill"), "join groups that begin with \"bill\"");
        assert_eq!(right(AclOperation::Join, ""), "join all groups");
        assert_eq!(right(AclOperation::Administer, ""), "do everything");
    }
}
