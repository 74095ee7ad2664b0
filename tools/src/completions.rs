//! `quire completions SHELL`

use clap::Args;
use clap_complete::Shell;

use crate::failure::{Exit, Failure};
use crate::{args, output};

/// Prints a completion script: bash: quire completions bash > ~/.local/share/bash-completion/completions/quire
#[derive(Debug, Args)]
#[command(after_help = "\
bash   quire completions bash > ~/.local/share/bash-completion/completions/quire
zsh    quire completions zsh > \"${fpath[1]}/_quire\"
fish   quire completions fish > ~/.config/fish/completions/quire.fish")]
pub struct CompletionsArgs {
    /// The shell to print them for
    shell: Shell,
}

/// Writes the script to standard output.
///
/// # Errors
/// If it can not be written.
pub fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "quire", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
