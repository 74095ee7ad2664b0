//! `quire acl`: who may do what.

use clap::{Args, Subcommand, ValueEnum};
use quire_client::{Acl, AclOperation, Client};
use serde::Serialize;

use crate::args::JsonArg;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Palette, Table};

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
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prefix: String,
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
    /// Create, alter and delete topics
    Manage,
    /// Everything, also with the cluster itself
    Administer,
}

impl RightArgs {
    fn acl(&self) -> Acl {
        let operation = match self.operation {
            RightOperation::Produce => AclOperation::Produce,
            RightOperation::Consume => AclOperation::Consume,
            RightOperation::Manage => AclOperation::Manage,
            RightOperation::Administer => AclOperation::Administer,
        };
        Acl { principal: self.principal.clone(), operation, topic_prefix: self.prefix.clone() }
    }
}

/// Does it.
///
/// # Errors
/// If the broker can not be reached or refuses, or the answer can not be written.
pub async fn run(profile: Option<&str>, command: &AclCommand) -> Result<Exit, Failure> {
    let work = async |client: &Client| match command {
        AclCommand::Add(args) => add(client, args).await,
        AclCommand::List(args) => list(client, args.json).await,
        AclCommand::Remove(args) => remove(client, args).await,
    };
    connect::with_client(profile, work).await.map(|()| Exit::Done)
}

async fn add(client: &Client, args: &RightArgs) -> Result<(), Failure> {
    let acl = args.acl();
    client.admin().add_acl(acl.clone()).await?;
    if args.output.json {
        return output::print_json(&AclJson::from(&acl));
    }
    output::print(&format!("{} may {}\n", acl.principal, sentence(&acl)))
}

async fn remove(client: &Client, args: &RightArgs) -> Result<(), Failure> {
    let acl = args.acl();
    client.admin().remove_acl(acl.clone()).await?;
    if args.output.json {
        return output::print_json(&AclJson::from(&acl));
    }
    output::print(&format!("taken away: {} may {}\n", acl.principal, sentence(&acl)))?;
    output::note("streams that are open go on; the next one is refused, unless another right allows it");
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
    let mut table = Table::new(&[("PRINCIPAL", Align::Left), ("MAY", Align::Left), ("TOPICS", Align::Left)]);
    for acl in &acls {
        let topics = if acl.topic_prefix.is_empty() { "all" } else { &format!("{}*", acl.topic_prefix) };
        table.row(vec![acl.principal.clone(), name(acl.operation).to_owned(), topics.to_owned()]);
    }
    output::print(&table.render(Palette::stdout()))
}

fn name(operation: AclOperation) -> &'static str {
    match operation {
        AclOperation::Produce => "produce",
        AclOperation::Consume => "consume",
        AclOperation::Manage => "manage",
        AclOperation::Administer => "administer",
    }
}

fn sentence(acl: &Acl) -> String {
    let topics = match acl.topic_prefix.as_str() {
        "" => "all topics".to_owned(),
        prefix => format!("topics that begin with \"{prefix}\""),
    };
    match acl.operation {
        AclOperation::Produce => format!("produce to {topics}"),
        AclOperation::Consume => format!("consume {topics}"),
        AclOperation::Manage => format!("create, alter and delete {topics}"),
        AclOperation::Administer => "do everything".to_owned(),
    }
}

#[derive(Serialize)]
struct AclJson<'a> {
    principal: &'a str,
    operation: &'static str,
    topic_prefix: &'a str,
}

impl<'a> From<&'a Acl> for AclJson<'a> {
    fn from(acl: &'a Acl) -> AclJson<'a> {
        AclJson { principal: &acl.principal, operation: name(acl.operation), topic_prefix: &acl.topic_prefix }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_reads_as_a_sentence() {
        let right = |operation, prefix: &str| {
            sentence(&Acl { principal: "billing".into(), operation, topic_prefix: prefix.into() })
        };
        assert_eq!(right(AclOperation::Produce, "bill."), "produce to topics that begin with \"bill.\"");
        assert_eq!(right(AclOperation::Consume, ""), "consume all topics");
        assert_eq!(right(AclOperation::Administer, ""), "do everything");
    }
}
