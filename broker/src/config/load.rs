//! From text and environment to [`raw::Config`](super::raw): every key is held against the known ones first, so that a
//! mistyped one is answered with its line and the name that was probably meant.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use toml::de::DeTable;
use toml::{Table, Value};

use super::raw;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is not TOML, or a value has the wrong type.
    #[error("{origin}, line {line}: {message}")]
    Syntax {
        /// Where the text came from.
        origin: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// No such option.
    #[error("{place}: no option \"{name}\"{}", nearest.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    Unknown {
        /// Where it was given.
        place: String,
        /// What was given.
        name: String,
        /// The known option closest to it.
        nearest: Option<String>,
    },
    /// An environment variable's value does not fit its option.
    #[error("environment variable {variable}: expected {expected}")]
    Variable {
        /// Its name.
        variable: String,
        /// What it takes.
        expected: &'static str,
    },
    /// An environment variable's value is not text.
    #[error("environment variable {variable}: its value is not UTF-8")]
    NotText {
        /// Its name.
        variable: String,
    },
    /// A value out of its option's range.
    #[error("{option} = \"{value}\": expected {expected}")]
    Value {
        /// The option, with its section.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        expected: String,
    },
}

/// Reads `text`, then lets variables override it.
pub(super) fn raw(
    text: &str,
    origin: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<raw::Config, ConfigError> {
    let known = known();
    let tree = DeTable::parse(text).map_err(|error| syntax(&error, text, origin))?;
    refuse_unknown(tree.get_ref(), &known, text, origin)?;
    // Deserialised once from the text for errors that name the line; overrides are then laid over it as values.
    let given: raw::Config = toml::from_str(text).map_err(|error| syntax(&error, text, origin))?;
    let mut table = Table::try_from(given).expect("our own options serialise");
    for (variable, value) in variables {
        override_one(&mut table, &known, &variable, &value)?;
    }
    let config = raw::Config::deserialize(table);
    config.map_err(|error| syntax(&error, "", "the environment"))
}

/// The variables that may be options. Others are somebody else's, and may be anything.
pub(super) fn candidates(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let known = known();
    let named = variables.into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let section = name.strip_prefix("QUIRE_")?.split('_').next()?.to_lowercase();
        known.contains_key(&section).then_some((name, value))
    });
    named
        .map(|(variable, value)| match value.into_string() {
            Ok(value) => Ok((variable, value)),
            Err(_) => Err(ConfigError::NotText { variable }),
        })
        .collect()
}

/// Every section and option with its default.
fn known() -> Table {
    Table::try_from(raw::Config::default()).expect("our own options serialise")
}

fn refuse_unknown(tree: &DeTable<'_>, known: &Table, text: &str, origin: &str) -> Result<(), ConfigError> {
    for (section, body) in tree.iter() {
        let name = section.get_ref().as_ref();
        let Some(Value::Table(options)) = known.get(name) else {
            return Err(unknown(place(origin, text, section.span().start), name.to_owned(), known.keys()));
        };
        // A section that is no table is an error of type, which deserialising reports.
        for key in body.get_ref().as_table().into_iter().flat_map(|body| body.keys()) {
            let option = key.get_ref().as_ref();
            if !options.contains_key(option) {
                let place = place(origin, text, key.span().start);
                return Err(unknown(place, format!("{name}.{option}"), &qualified(name, options)));
            }
        }
    }
    Ok(())
}

fn qualified(section: &str, options: &Table) -> Vec<String> {
    options.keys().map(|option| format!("{section}.{option}")).collect()
}

/// Applies one variable if it is named after one of our sections; others are not ours.
fn override_one(table: &mut Table, known: &Table, variable: &str, text: &str) -> Result<(), ConfigError> {
    let Some(name) = variable.strip_prefix("QUIRE_").map(str::to_lowercase) else { return Ok(()) };
    let Some((section, option)) = name.split_once('_') else { return Ok(()) };
    let Some(Value::Table(options)) = known.get(section) else { return Ok(()) };
    let Some(default) = options.get(option) else {
        let names: Vec<String> = options.keys().map(|key| variable_name(section, key)).collect();
        return Err(unknown("environment".to_owned(), variable.to_owned(), &names));
    };
    let value = like(default, text)
        .map_err(|expected| ConfigError::Variable { variable: variable.to_owned(), expected })?;
    if let Some(Value::Table(section)) = table.get_mut(section) {
        section.insert(option.to_owned(), value);
    }
    Ok(())
}

fn variable_name(section: &str, option: &str) -> String {
    format!("QUIRE_{section}_{option}").to_uppercase()
}

/// Reads a variable's text as a value of the same type as the option's default.
fn like(default: &Value, text: &str) -> Result<Value, &'static str> {
    match default {
        Value::Integer(_) => text.parse().map(Value::Integer).map_err(|_| "a whole number"),
        Value::Boolean(_) => text.parse().map(Value::Boolean).map_err(|_| "true or false"),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn unknown<'a, S: AsRef<str> + 'a>(
    place: String,
    name: String,
    known: impl IntoIterator<Item = &'a S>,
) -> ConfigError {
    let nearest = known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate.as_ref(), &name), candidate.as_ref()))
        .min()
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .map(|(_, candidate)| candidate.to_owned());
    ConfigError::Unknown { place, name, nearest }
}

fn syntax(error: &toml::de::Error, text: &str, origin: &str) -> ConfigError {
    ConfigError::Syntax {
        origin: origin.to_owned(),
        line: line(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    }
}

fn place(origin: &str, text: &str, position: usize) -> String {
    format!("{origin}, line {}", line(text, position))
}

fn line(text: &str, position: usize) -> usize {
    text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Config::parse(text, "quire.toml", variables)
    }

    fn error(text: &str, variables: &[(&str, &str)]) -> String {
        parse(text, variables).expect_err("not acceptable").to_string()
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        assert_eq!(parse("", &[]).expect("empty is fine"), Config::new("/var/lib/quire"));
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        let text = "[broker]\nshards = 2\n[network]\nlissten = \"0.0.0.0:1\"\n";
        assert_eq!(
            error(text, &[]),
            "quire.toml, line 4: no option \"network.lissten\"; did you mean \"network.listen\"?"
        );
        assert_eq!(
            error("\n[netwrok]\n", &[]),
            "quire.toml, line 2: no option \"netwrok\"; did you mean \"network\"?"
        );
        assert_eq!(error("[tls]\ncolour = 1\n", &[]), "quire.toml, line 2: no option \"tls.colour\"");
    }

    #[test]
    fn a_value_of_the_wrong_type_or_range_says_what_it_takes() {
        assert!(error("[broker]\nshards = \"two\"\n", &[]).starts_with("quire.toml, line 2: invalid type"));
        assert_eq!(error("[broker]\nshards = 1000\n", &[]), "broker.shards = \"1000\": expected 0 to 256");
        assert!(error("[network]\nadvertise = \"host\"\n", &[]).contains("HOST:PORT"));
        assert!(error("[memory]\nproduce_bytes = 5\n", &[]).contains("memory.produce_bytes"));
    }

    #[test]
    fn names_that_no_certificate_can_have_are_refused() {
        for name in ["", "no spaces", "münchen.example", "a..b", "https://a"] {
            assert!(
                error(&format!("[tls]\nnames = [\"{name}\"]\n"), &[]).starts_with("tls.names = "),
                "\"{name}\" is no host"
            );
        }
        assert!(error("[network]\nadvertise = \"a..b:1\"\n", &[]).starts_with("network.advertise = "));
        let names = "[tls]\nnames = [\"log.example\", \"*.log.example\", \"10.0.0.1\", \"fe80::1\"]\n";
        assert_eq!(parse(names, &[]).expect("all can be certified").tls.names.len(), 4);
    }

    #[test]
    fn a_broker_that_others_reach_needs_a_name() {
        let nameless = |text| parse(text, &[]).expect("all are options").is_nameless();
        assert!(nameless(""), "the defaults listen on every address");
        assert!(!nameless("[network]\nlisten = \"127.0.0.1:9440\"\n"));
        assert!(!nameless("[network]\nadvertise = \"log.example:9440\"\n"));
        assert!(!nameless("[tls]\nnames = [\"log.example\"]\n"));
    }

    #[test]
    fn variables_override_the_file() {
        let config = parse(
            "[network]\nlisten = \"127.0.0.1:1\"\n[tls]\nanonymous = true\n",
            &[
                ("QUIRE_NETWORK_LISTEN", "127.0.0.1:2"),
                ("QUIRE_TLS_NAMES", "a.example, b.example"),
                ("QUIRE_BROKER_DATA_DIR", "/elsewhere"),
                ("QUIRE_PROFILE", "not ours"),
                ("PATH", "not ours either"),
            ],
        )
        .expect("all are options");
        assert_eq!(config.network.listen.port(), 2);
        assert_eq!(config.tls.names, ["a.example", "b.example"]);
        assert!(config.tls.anonymous, "what no variable names stays");
        assert_eq!(config.data_dir, PathBuf::from("/elsewhere"));
    }

    #[test]
    fn how_long_a_deleted_topic_stays_can_be_said() {
        let grace = |text| parse(text, &[]).expect("in range").deletion_grace.as_millis();
        assert_eq!(grace(""), 60_000);
        assert_eq!(grace("[broker]\ndeletion_grace_ms = 0\n"), 0);
    }

    #[test]
    fn how_replicas_and_logs_are_watched_can_be_said() {
        let parsed = |text| parse(text, &[]).expect("in range");
        assert_eq!(parsed("").cluster.replica_lag.as_millis(), 5_000);
        assert_eq!(parsed("[cluster]\nreplica_lag_ms = 700\n").cluster.replica_lag.as_millis(), 700);
        assert!(error("[cluster]\nreplica_lag_ms = 1\n", &[]).contains("expected 100 to 3600000"));
        let off = parsed("[broker]\nscrub_bytes_per_second = 0\nscrub_interval_ms = 100\n").scrub;
        assert_eq!((off.bytes_per_second, off.interval.as_millis()), (0, 100));
        assert!(error("[broker]\nscrub_interval_ms = 0\n", &[]).starts_with("broker.scrub_interval_ms"));
    }

    #[test]
    fn a_mistyped_variable_of_ours_is_an_error() {
        assert_eq!(
            error("", &[("QUIRE_NETWORK_LISTN", "x")]),
            "environment: no option \"QUIRE_NETWORK_LISTN\"; did you mean \"QUIRE_NETWORK_LISTEN\"?"
        );
        assert_eq!(
            error("", &[("QUIRE_BROKER_SHARDS", "x")]),
            "environment variable QUIRE_BROKER_SHARDS: expected a whole number"
        );
    }

    #[test]
    fn only_our_own_variables_need_to_be_text() {
        use std::os::unix::ffi::OsStringExt;
        let no_text = || OsString::from_vec(vec![b'Q', 0xff]);
        let variable = |name: &str, value: OsString| (OsString::from(name), value);
        let others = [
            (no_text(), no_text()),
            variable("PATH", no_text()),
            variable("QUIRE_PROFILE", no_text()),
            variable("QUIRE_TLS_NAMES", "a".into()),
        ];
        let ours = [("QUIRE_TLS_NAMES".to_owned(), "a".to_owned())];
        assert_eq!(candidates(others).expect("nothing of ours is amiss"), ours);
        let error = candidates([variable("QUIRE_TLS_NAMES", no_text())]).expect_err("not a name");
        assert_eq!(error.to_string(), "environment variable QUIRE_TLS_NAMES: its value is not UTF-8");
    }

    /// Holds `config/quire.toml` to the code: every option is there, explained, and with its default.
    #[test]
    fn the_sample_lists_every_option_with_its_default() {
        let text = include_str!("../../../config/quire.toml");
        let sample: Table = text.parse().expect("the sample is TOML");
        assert_eq!(sample, known(), "config/quire.toml and the options differ");
        let lines: Vec<&str> = text.lines().collect();
        for (number, pair) in lines.windows(2).enumerate() {
            let is_option = !pair[1].starts_with(['#', '[']) && pair[1].contains('=');
            assert!(!is_option || pair[0].starts_with('#'), "line {} explains nothing before it", number + 2);
        }
    }
}
