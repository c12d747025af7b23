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
        fact(
            getString(R.string.self_test),
            if (test.inSteps) {
                getString(R.string.test_steps, test.agreeing, count, SelfTest.STEPS, test.worst)
            } else {
                getString(R.string.test_float, test.agreeing, count, test.limit / MILLIONTHS, test.worst / MILLIONTHS)
            },
        )
        test.differences.forEachIndexed { index, difference ->
            fact(
                getString(R.string.test_vector, index + 1),
                if (test.inSteps) {
                    getString(R.string.test_vector_steps, difference)
                } else {
                    getString(R.string.test_vector_float, difference / MILLIONTHS)
                },
            )
        }
    }

    private companion object {
        /** Millionths in one per cent. */
        const val MILLIONTHS = 1e4
    }
}
