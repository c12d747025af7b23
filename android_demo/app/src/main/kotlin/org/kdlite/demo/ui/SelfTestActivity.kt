package org.kdlite.demo.ui

import org.kdlite.demo.R
import org.kdlite.demo.core.SelfTest
import org.kdlite.demo.inference.Classifier
import org.kdlite.demo.inference.selfTest

/** Whether this device computes what was computed where the file was made. */
class SelfTestActivity : PageActivity() {
    override fun onModel(classifier: Classifier) {
        summary(getString(R.string.running))
        engine.run({ it.selfTest() }) { result ->
            result.fold(
                { if (it == null) summary(getString(R.string.test_none)) else show(it) },
                { onUnusable(sentence(it)) },
            )
        }
    }

    private fun show(test: SelfTest) {
        summary(getString(if (test.passed) R.string.test_passed else R.string.test_failed))
        val count = test.differences.size
        val agreement = if (test.inSteps) {
            resources.getQuantityString(R.plurals.test_steps, count, test.agreeing, count, SelfTest.STEPS)
        } else {
            val limit = percent(test.limit / MILLIONTHS, digits = 2)
            resources.getQuantityString(R.plurals.test_float, count, test.agreeing, count, limit)
        }
        val worst = getString(R.string.test_worst, told(test.worst, test.inSteps))
        fact(getString(R.string.self_test), "$agreement $worst")
        test.differences.forEachIndexed { index, difference ->
            fact(getString(R.string.test_vector, index + 1), told(difference, test.inSteps))
        }
    }

    private fun told(difference: Double, inSteps: Boolean): String = when {
        !difference.isFinite() -> getString(R.string.test_no_number)
        inSteps -> getString(R.string.test_vector_steps, difference)
        else -> percent(difference / MILLIONTHS, digits = 4)
    }

    private companion object {
        const val MILLIONTHS = 1e6
    }
}
